"""Beyond one server: a Redis Cluster, a primary behind Sentinels, a PostgreSQL with a standby; each loses its primary."""
