-- Find a data migration that is done.
SELECT name, result FROM worker.data_migration WHERE name = :name
