# Each line repeats one run or evaluation. Call them where `selfcorrect pack` was called, runs first.
selfcorrect train results/real-model/rows/base/seed-1/config.toml --out again/base/seed-1
selfcorrect train results/real-model/rows/score/seed-0/config.toml --out again/score/seed-0
selfcorrect train results/real-model/rows/tree-alone/seed-0/config.toml --out again/tree-alone/seed-0
selfcorrect train results/real-model/rows/tree-alone/seed-1/config.toml --out again/tree-alone/seed-1
