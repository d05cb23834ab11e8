"""The sample's stack without an account: an emulator of its services, and the real `sam` that deploys to it."""
