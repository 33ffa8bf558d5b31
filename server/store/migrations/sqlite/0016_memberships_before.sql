-- The membership that a place in a room had before it got its present one: whoever follows the stream sees from it who
-- has come and gone, and who has only changed a name. NULL for none, and for what was written before this column.
ALTER TABLE memberships ADD COLUMN was INTEGER;
