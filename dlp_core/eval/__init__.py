"""Task suites, arms, metrics and reports: do routing and fusion beat a single adapter on your own tasks?"""
