-- Runs once, on a new server, as its superuser: the mesh owns its database and nothing else of the server. Who writes the
-- mesh's SQL could run programs as a superuser. That one has no password afterwards: it comes from inside the container.
\getenv password POSTGRES_PASSWORD
CREATE ROLE leben LOGIN PASSWORD :'password';
CREATE DATABASE leben OWNER leben;
REVOKE CONNECT ON DATABASE postgres FROM PUBLIC;
ALTER ROLE postgres PASSWORD NULL;
