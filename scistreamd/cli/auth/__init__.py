"""Logins of the user client: providers, flows, the tokens that they gave, and which gateway may have them."""
