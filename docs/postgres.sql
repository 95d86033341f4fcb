-- The archive's database in PostgreSQL 15 or newer, and two roles: `lastevent` owns it, for the workers, which write;
-- `lastevent_reader`, for the servers, can read and nothing more. compose.yaml has it run when its Postgres is new.
-- Elsewhere a superuser runs it once, with both passwords in the environment:
--
--   psql --set ON_ERROR_STOP=1 --dbname postgres --file docs/postgres.sql

\getenv writer_password LASTEVENT_POSTGRES_PASSWORD
\getenv reader_password LASTEVENT_POSTGRES_READER_PASSWORD
CREATE ROLE lastevent LOGIN PASSWORD :'writer_password';
CREATE ROLE lastevent_reader LOGIN PASSWORD :'reader_password';

-- Byte order: it is the order that listings are in, and an update of the system's locales cannot change it.
CREATE DATABASE lastevent OWNER lastevent ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0;
REVOKE ALL ON DATABASE lastevent FROM PUBLIC;
GRANT CONNECT ON DATABASE lastevent TO lastevent_reader;

\connect lastevent
-- What the workers' migrations make, now and in later releases.
ALTER DEFAULT PRIVILEGES FOR ROLE lastevent GRANT SELECT ON TABLES TO lastevent_reader;

-- In the image the superuser has a password that others know: then with none it can log in from the container only.
\getenv image_password POSTGRES_PASSWORD
\if :{?image_password}
ALTER ROLE CURRENT_USER PASSWORD NULL;
\endif
