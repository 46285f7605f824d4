"""What is timed, in which order, and what the timings say: schedule, estimator, pooling, controls.

Everything here is pure: values in, values out. What runs on the pod is in runtime/; the rules that
turn figures into a verified or excluded row are in judgement/.
"""
