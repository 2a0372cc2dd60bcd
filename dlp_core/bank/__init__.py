"""The versioned set of adapters with their router: described, published, rolled back, collected, cached."""
