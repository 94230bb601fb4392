-- Return whether an attempt of a hand has committed a batch in a range that it has walked to its end.
SELECT EXISTS (SELECT FROM worker.step_range
                WHERE owner = :id AND owner_fence = :fence AND batches > batches_before)
