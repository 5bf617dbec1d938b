"""A model on a server that an evaluation measures, and the choice of the protocol.

The rule, where `EvalSettings.api` leaves the choice: an evaluation that is resumed keeps its protocol. A tokenizer that is
named means `completions`. If the model's name is a directory here that holds a tokenizer (as ``vllm serve DIR`` calls its
model), the first request decides: `completions` if the server returns token ids and makes those of this tokenizer, else
`chat`. Everything else means `chat`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from selfcorrect.config.evaluation import EvalSettings
from selfcorrect.engines import Sampling
from selfcorrect.engines.chat_api import ChatAPI
from selfcorrect.engines.completions_api import CompletionsAPI
from selfcorrect.engines.openai_chat import EndpointEngine, Server, check_tokenizer
from selfcorrect.engines.transport import served_models
from selfcorrect.errors import ConfigError, EndpointError, ModelError
from selfcorrect.evaluation.planned_parts import EvalPlan
from selfcorrect.evaluation.problem_set import ProblemSet
from selfcorrect.models.chat_template import end_of_turn, note_unknown_end
from selfcorrect.rollout.chat_rollout import ChatRollouter
from selfcorrect.rollout.rollout import check_context
from selfcorrect.rollout.rollouter import Rollouter
from selfcorrect.rollout.served_context import MessageContext, TokenContext
from selfcorrect.storage.evaluation_dir import IDENTITY, plain, read_identity
from selfcorrect.types import MESSAGES, TOKENS, ServerAPI
from selfcorrect.zoo.resolve import LIVE, find_tokenizer

log = logging.getLogger(__name__)

REQUESTS = 16
"""Default number of concurrent requests to a server."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class ServedModel:
    """A model on a server. Its weights are not accessible, so the address and the name identify it.

    Args:
        tokenizer: a live tokenizer, in place of the one that the settings name.
        recorded: the context mode of the evaluation that is resumed, if there is one.
    """

    def __init__(self, server: Server, settings: EvalSettings, tokenizer: Any, recorded: str | None) -> None:
        self.server, self.settings, self._live = server, settings, tokenizer
        self._named = LIVE if tokenizer is not None else settings.tokenizer
        self.api, self._tentative = _choice(settings.api, self._named, server.model, recorded)
        if self.api is ServerAPI.CHAT and self._named is not None:
            raise ConfigError(
                f'tokenizer = {self._named!r} is only for the completions protocol (api = "completions"), but this evaluation '
                "is one of the chat protocol: leave it out."
            )
        self._source = self._named or server.model
        if (
            self.api is ServerAPI.COMPLETIONS
            and tokenizer is None
            and not (self._named or _holds_tokenizer(server.model))
        ):
            raise ConfigError(
                'api = "completions" renders the conversations here, so it needs the tokenizer of the served model: '
                "name its directory or hub id (--tokenizer)."
            )

    @property
    def known(self) -> Mapping[str, Any]:
        """Return what can be recorded now; a protocol that the first request may still change is left out."""
        model = {"digest": None, "source": f"{self.server.model} at {self.server.base_url}"}
        return {"model": model, **({} if self._tentative else self.identity)}

    @property
    def identity(self) -> Mapping[str, Any]:
        """Return the protocol and the address. Chat has no name in the record, as when there was nothing else."""
        tokens = self.api is ServerAPI.COMPLETIONS
        own = {"api": self.api.value, "tokenizer": self._source} if tokens else {}
        address = {"base_url": self.server.base_url, "model": self.server.model}
        return {"context_mode": TOKENS if tokens else MESSAGES, "endpoint": {**address, **own}}

    @property
    def sampler(self) -> Mapping[str, Any]:
        server = self.server
        recorded = {"chat_template_kwargs": server.chat_template_kwargs, "extra_body": server.extra_body}
        dropped = {"drop_fields": sorted(server.drop_fields)} if server.drop_fields else {}
        return {**{name: plain(value) for name, value in recorded.items() if value}, **dropped}

    def foresee(self, problem_set: ProblemSet, plan: EvalPlan) -> EvalPlan:
        temperatures = [plan.temperature, *([plan.sampled_temperature] if plan.sampled_temperature else [])]
        if "temperature" in self.server.drop_fields and set(temperatures) != {1.0}:
            raise ConfigError(
                f"drop_fields leaves out the temperature, so the server samples at its own, usually 1, but temperature = "
                f"{', '.join(f'{t:g}' for t in temperatures)} is to be measured: set temperature = 1, and sampled = false."
            )
        return plan

    def prepare(self, stack: ExitStack, problem_set: ProblemSet, plan: EvalPlan, *, finished: bool) -> None:
        if self._tentative:
            self.api = self._tried(problem_set)
        if self.api is ServerAPI.CHAT:
            self._connect(stack, EndpointEngine(self.server, ChatAPI(self.server)), MessageContext())
        else:
            self._prepare_tokens(stack, problem_set, plan, finished=finished)
        if finished:
            return
        self._connected.check(problem_set.problems, problem_set.script, Sampling(plan.temperature, 1, plan.stop))
        log.info("%s: the %s protocol, context mode %s", self.server.base_url, self.api, self.identity["context_mode"])

    def fit(self, problem_set: ProblemSet, plan: EvalPlan) -> EvalPlan:
        return plan

    def rollouter(self, stack: ExitStack, *, finished: bool) -> Rollouter:
        return self._connected

    def _connect(self, stack: ExitStack, engine: Any, context: Any) -> None:
        requests = self.settings.max_num_seqs or REQUESTS
        self._connected = stack.enter_context(ChatRollouter.connected(engine, context, concurrency=requests))

    def _prepare_tokens(self, stack: ExitStack, problem_set: ProblemSet, plan: EvalPlan, *, finished: bool) -> None:
        context = self._context()
        note_unknown_end(context.tokenizer)
        chat = context.chat(problem_set.script)  # rejects options that the template does not use
        engine = self._engine(context)
        self._connect(stack, engine, context)
        if finished:
            return
        self._check_tokenizer(self._connected, engine, context, problem_set)
        limit = _context_limit(self.server)
        if limit is not None:
            check_context(problem_set.problems, chat, plan.max_tokens, limit)

    def _tried(self, problem_set: ProblemSet) -> ServerAPI:
        """Return the protocol that the server can do."""
        try:
            context = self._context()
            engine = self._engine(context)
            with ChatRollouter.connected(engine, context, concurrency=1) as connected:
                self._check_tokenizer(connected, engine, context, problem_set)
        except (ModelError, ConfigError) as error:
            log.info("%s is a directory with a tokenizer, but token ids are not possible: %s", self.server.model, error)
            return ServerAPI.CHAT
        return ServerAPI.COMPLETIONS

    def _context(self) -> TokenContext:
        tokenizer = find_tokenizer(self._source, seed=self.settings.seed) if self._live is None else self._live
        return TokenContext(tokenizer, self.server.chat_template_kwargs)

    def _engine(self, context: TokenContext) -> EndpointEngine[tuple[int, ...]]:
        ends = {context.tokenizer.eos_token_id, end_of_turn(context.tokenizer)} - {None}
        return EndpointEngine(self.server, CompletionsAPI([int(end) for end in ends if end is not None]))

    def _check_tokenizer(
        self,
        connected: ChatRollouter,
        engine: EndpointEngine[tuple[int, ...]],
        context: TokenContext,
        problem_set: ProblemSet,
    ) -> None:
        chat = context.chat(problem_set.script)
        text = chat.rendered(min((problem.prompt for problem in problem_set.problems), key=len))
        connected.call(check_tokenizer, engine, text, chat.ids(text))


def recorded_mode(out: Path | None) -> str | None:
    """Return the context mode of the evaluation of a served model in a directory; None if it holds none."""
    if out is None or not (out / IDENTITY).is_file():
        return None
    identity = read_identity(out)
    return str(identity["context_mode"]) if "endpoint" in identity else None


def _choice(api: ServerAPI, tokenizer: str | None, model: str, recorded: str | None) -> tuple[ServerAPI, bool]:
    """Return the protocol, and whether the first request may still change it.

    >>> [_choice(ServerAPI.AUTO, None, "m", None)[0].value, _choice(ServerAPI.AUTO, "dir", "m", None)[0].value]
    ['chat', 'completions']
    >>> _choice(ServerAPI.AUTO, None, "m", TOKENS)[0].value
    'completions'
    """
    if api is not ServerAPI.AUTO:
        return api, False
    if recorded is not None:
        return (ServerAPI.COMPLETIONS if recorded == TOKENS else ServerAPI.CHAT), False
    if tokenizer is not None:
        return ServerAPI.COMPLETIONS, False
    return (ServerAPI.COMPLETIONS, True) if _holds_tokenizer(model) else (ServerAPI.CHAT, False)


def _holds_tokenizer(name: str) -> bool:
    return any((Path(name) / file).is_file() for file in TOKENIZER_FILES)


def _context_limit(server: Server) -> int | None:
    """Return the context limit that the server reports; None if it reports none."""
    try:
        return served_models(server).get(server.model)
    except EndpointError:
        return None
