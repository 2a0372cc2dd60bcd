"""The weighted sum of LoRAs inside a model's layers: the specification, and an op for each kind of device."""
