"""What a legal call is. Everything else imports this package; it imports nothing of ours."""
