# Each line repeats one run or evaluation. Call them where `selfcorrect pack` was called, runs first.
selfcorrect train results/real-model/first/base/seed-0/config.toml --out again/base/seed-0
selfcorrect train results/real-model/first/score/seed-0/config.toml --out again/score/seed-0
