"""Detectors of ill runs. Each reads the reports of a run and finds one thing that can be wrong.

To add a detector, write a class that implements `Detector` in protocol.py, and add it to DETECTORS in watch/health.py.
"""
