"""What asks for work. Sensors are advisory: they compare the world with the database and ask for a run.

No cursor is the truth and no run has a key: Dagster keeps a tick's result and its cursor in two writes, and remembers a
run key for ever. A request that is lost or made twice must do no harm.
"""
