"""A sample application: Lambda functions as a user would deploy them, and a demo that shows them at work."""
