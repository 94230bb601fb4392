-- Let the steps of a run continue with whatever statements its next attempt has: an empty statement matches all.
UPDATE worker.step SET statement = '' WHERE run_id = :id
