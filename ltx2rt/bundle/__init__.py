"""Bundles and what lies in them: opened, checked, their engines and weights handed out."""
