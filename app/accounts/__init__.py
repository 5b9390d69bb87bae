"""Who is there: sign-in, the family, roles, consents. Promises that a child's facts reach only its guardians."""
