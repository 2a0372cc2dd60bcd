"""Fused multi-LoRA maths. `reference` is the specification; every other op must agree with it."""
