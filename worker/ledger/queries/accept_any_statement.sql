-- Let the steps of a run continue with any statements of its next attempt: an empty statement matches all.
UPDATE worker.step SET statement = '' WHERE run_id = :id
