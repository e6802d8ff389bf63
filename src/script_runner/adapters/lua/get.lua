-- A task as it is told. ARGV: id.

return told(ARGV[1])
