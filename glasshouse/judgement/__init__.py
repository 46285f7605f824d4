"""Judgement: what a run's facts amount to. Pure: the same facts give the same record, byte for byte."""
