"""Which adapters are on the device: pins, eviction, and the loads that bring them there."""
