"""The family: people, their guardians, consents and invitations.

Promises that what an account is no guardian of does not exist for it.
"""
