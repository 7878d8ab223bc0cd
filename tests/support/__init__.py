"""What tests of several rooms share: tiny checkpoints, engines, calls, services, and doubles at real seams."""
