"""What is evaluated and how: the tasks by name (`catalogue`), the way from a question to a record (`runner`)."""
