"""What a job's owner watches, at home: records are opened and parsed, curves kept and drawn.

All of it bounded: whoever wrote the project wrote what is in a record.
"""
