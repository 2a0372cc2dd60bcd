"""What Kubernetes is given: one file of values becomes the objects of an installation."""
