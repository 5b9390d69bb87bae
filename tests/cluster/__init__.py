"""Beyond one server: a cluster, a primary behind Sentinels, a PostgreSQL with a standby; each loses its primary."""
