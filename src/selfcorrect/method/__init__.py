"""The learning objectives: rewards, advantages, losses and data selection. Pure: no model, no tokenizer, no file."""
