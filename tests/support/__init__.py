"""What the tests are made of: servers that fail on purpose, a proxy, a cancel stepper."""
