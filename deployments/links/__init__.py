"""The pieces of many answers in one message, from a backbone replica to an ingress replica. Knows nothing of Ray."""
