"""The command line: it joins the rooms. The only room that prints and exits."""
