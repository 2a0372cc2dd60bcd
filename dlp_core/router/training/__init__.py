"""What only training a router needs. Serving never imports it."""
