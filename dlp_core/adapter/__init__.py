"""One PEFT adapter: its config, its weights, its name, and whether it fits a base model."""
