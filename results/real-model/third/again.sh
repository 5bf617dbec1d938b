# Each line repeats one run or evaluation. Call them where `selfcorrect pack` was called, runs first.
selfcorrect train results/real-model/third/tree-alone/seed-100/config.toml --out again/seed-100
