"""Who may do what: tokens and their scopes, and the certificates of the ports."""
