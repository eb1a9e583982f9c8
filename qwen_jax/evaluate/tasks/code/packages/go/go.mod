module program

go 1.18

require github.com/stretchr/testify v1.8.1

replace github.com/stretchr/testify => ./testify
