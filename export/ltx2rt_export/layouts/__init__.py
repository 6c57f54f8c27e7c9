"""Layouts of model files other than the official one: their names and configurations in official
words.
"""
