"""Activities and their sessions: the first feature on top of booking. Each session says which pool stands behind it."""
