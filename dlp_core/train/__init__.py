"""Trains LoRA adapters with PEFT."""
