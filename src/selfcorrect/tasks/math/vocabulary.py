"""Words around numbers: those that change a number, those that only look as if they did, and the names of units."""

from __future__ import annotations

import re


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


CHANGING = _set("""
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty thirty forty fifty sixty seventy eighty ninety ones tens teens hundred hundreds thousand thousands k
lakh lakhs lac lacs crore crores arab kharab wan man yi oku myriad myriads dozen dozens score scores gross pair pairs couple
couples brace trio trios duo grand mille mil milliard tausend hundert googol googols
half halves third thirds quarter quarters fourth fourths first percent percentage percents percentile percentiles permille
promille ppm ppb bps basis pct proportion fraction fractions decimal decimals
times fold double doubled doubles triple tripled triples quadruple quadrupled quintuple sextuple twice thrice multiple
multiples treble trebled halved halving quartered tenfold
squared cubed factorial factorials root roots power powers exponent exponents exponential log logarithm logs inverse
reciprocal square cubic sq cu cube cubes
negative minus below under loss lost owed debt deficit opposite additive conjugate complement
plus over divided multiplied mod modulo modulus remainder raised increased decreased reduced added subtracted
less fewer most least than greater smaller above between to or and not no nor either neither except but without excluding
base binary octal hex hexadecimal ternary radix
kilo mega giga tera milli micro nano pico
pi sqrt ln exp sin cos tan infinity infinite undefined none nothing imaginary approximately about
if when where unless until wrong incorrect false untrue maybe
thsd thsnd cento cem cien dutzend douzaine douzaines docena docenas semi
short shortfall overdrawn overdraft down reversed inverted squares zeros zeroes digits digit minimum maximum mila
""")
"""Number words, fractions, multipliers, powers, signs, operations, comparisons, bases: closed classes."""

CHANGING_FORM = re.compile(
    r"mil[lijh].*|bil(?:lion|liard|i|j).*|tril[lij].*|.*[a-z]ill(?:i?on|iard).*|thou.*|hundred.*|tausend.*|dozen.*|.*uple[ds]?|"
    r".*fold|.*teen|.*tuplets?"
)
"""Forms of large numbers, in other languages too, and of multipliers (quintillion, millones, octuple)."""

ORDINAL_FORM = re.compile(r".*ths?")
"""The form of parts (tenths, hundredths) and of ordinals."""

NOT_ORDINAL = _set("""
month months path paths bath baths moth moths math maths width widths length lengths depth depths tooth teeth cloth cloths
booth booths mouth mouths birth births death deaths earth north south wreath wreaths myth myths youth youths truth truths
growth health wealth strength strengths with both breadth worth
""")

SHORT = _set("""
act age ant art bag bar bat bed bee bow box boy bus can cap car cat cow cub cut day dog egg elf eye fan fig fly fox gas gem
gum gun guy hat hen hut ice ink jar jet jug key kid leg lot map mat men mop mug nut owl pad pan pea pen pet pie pig pin pit pot
rat ray red rod row rug sea set shy sky son toy tub van vet way web wig win yak zoo the a an new old big all bad hot her his its
our pcs pts pc hp ppl tv tvs dvd ups raw wet dry tie air tea oil ski jam job per of in for each at by
""")
"""Words of at most three letters that are no abbreviations."""

METRIC = {
    "m": "meter metre",
    "g": "gram gramme",
    "l": "liter litre",
    "L": "",
    "s": "second sec",
    "J": "joule",
    "W": "watt",
    "N": "newton",
    "Pa": "pascal",
    "Hz": "hertz",
    "V": "volt",
    "mol": "mole",
    "B": "byte",
    "cal": "calorie",
    "Wh": "watthour",
    "Ω": "ohm",
    "eV": "electronvolt",
    "bit": "",
    "Nm": "",
    "Js": "",
    "Ah": "amperehour",
    "A": "ampere amp",
}
PREFIXES = {
    "": "",
    "k": "kilo",
    "c": "centi",
    "m": "milli",
    "d": "deci",
    "n": "nano",
    "µ": "micro",
    "M": "mega",
    "G": "giga",
}
NOT_UNITS = _set("B A Gg cd")
"""Symbols of units that stand for something else as often: 5 B is five billion."""

OTHER_UNITS = """
in inch inches; ft foot feet; yd yard; mi mile; nmi; lb lbs pound; oz ounce; ton tonne; gal gallon; qt quart; pt pint; cup
tbsp; tsp; min mins minute; h hr hrs hour; day; wk week; mo mos month; yr yrs year; decade; century centuries
deg degree degrees; rad radian; rev revolution; mph; kph kmh; rpm; knot; acre; ha hectare; square units; sqft; sqm; cc; fps
dollar dollars usd bucks; cent cents; euro euros eur; gbp; rupee rupees inr rs Rs; yen jpy; yuan rmb cny; peso pesos; franc chf
unit units; square unit; cubic unit; kgs; kms; cms; mls
"""
"""Units apart from the metric ones, each with its other spellings after it; a plural s may follow."""

ALONE = _set("m g s h L l N J W V Ω")
"""Units of one letter, which must be set apart from the number (5 m) or upright."""

IN_COMPOUNDS = _set("K A C")
"""Units of one letter that are only certain right after another unit: kelvin, ampere, coulomb."""


def known_units() -> dict[str, str]:
    """Return the name of every spelling of a known unit."""
    known: dict[str, str] = {}
    for symbol, names in METRIC.items():
        for prefix, long_prefix in PREFIXES.items():
            unit = (prefix + symbol).replace("L", "l")
            if prefix + symbol not in NOT_UNITS:
                known[prefix + symbol] = unit
            for name in names.split():
                known[long_prefix + name] = known[f"{long_prefix}{name}s"] = unit
    for line in re.split(r"[;\n]", OTHER_UNITS):
        spellings = line.split()
        if spellings[:1] in (["square"], ["cubic"]):
            known[line.strip()] = "unit"
            continue
        for spelling in spellings:
            known[spelling] = spellings[0]
            if len(spelling) > 2:
                known[spelling + "s"] = spellings[0]
    return known


_ONES = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"


def number_words() -> dict[str, int]:
    """Return the whole numbers that are written as one word or two with a hyphen, from zero to ninety-nine."""
    words = {word: number for number, word in enumerate(_ONES.split())}
    for number, tens in enumerate(_TENS.split(), 2):
        words[tens] = 10 * number
        words |= {f"{tens}-{word}": 10 * number + one for one, word in enumerate(_ONES.split()[1:10], 1)}
    return words
