# Each line repeats one run or evaluation. Call them where `selfcorrect pack` was called, runs first.
selfcorrect train results/real-model/fourth/tree-alone/seed-0/config.toml --out again/seed-0
