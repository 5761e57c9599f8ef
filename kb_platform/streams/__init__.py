"""Kafka: brokers, topics, reading from positions, sending.

Belongs here: everything that speaks to a broker. Does not belong here: what records mean (`sources`), where positions are
kept (`store`), what is done with records (`stages`).
"""
