"""The command line of fadeviz, installed as ``fadeviz_cli``."""
