"""What is learnt: rewards, advantages, losses and choices of data. Pure: no model, no tokenizer, no file."""
