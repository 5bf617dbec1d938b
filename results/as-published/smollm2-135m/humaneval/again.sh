# Each line repeats one run or evaluation. Call them where `selfcorrect pack` was called, runs first.
selfcorrect eval --model smollm2-135m --task humaneval --split test --data-seed 0 --limit 150 --turns 2 --max-tokens 256 --seed 0 --temperature 0.0 --samples 1 --no-sampled --controls --dtype bfloat16 --out again/humaneval
