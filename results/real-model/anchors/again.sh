# Each line repeats one run or evaluation. Call them where `selfcorrect pack` was called, runs first.
selfcorrect train results/real-model/anchors/0.03/single-turn/seed-100/config.toml --out again/0.03/single-turn/seed-100
selfcorrect train results/real-model/anchors/0.3/single-turn/seed-100/config.toml --out again/0.3/single-turn/seed-100
selfcorrect train results/real-model/anchors/3.0/single-turn/seed-100/config.toml --out again/3.0/single-turn/seed-100
