module anneal.test/kairos

go 1.26.6

require (
	github.com/kairos-io/kairos-sdk v0.25.3
	github.com/mudler/yip v1.25.1
	github.com/twpayne/go-vfs/v5 v5.0.5
	gopkg.in/yaml.v3 v3.0.1
)

require (
	github.com/google/shlex v0.0.0-20191202100458-e7afc7fbc510 // indirect
	github.com/hashicorp/errwrap v1.1.0 // indirect
	github.com/hashicorp/go-multierror v1.1.1 // indirect
	github.com/itchyny/gojq v0.12.19 // indirect
	github.com/itchyny/timefmt-go v0.1.8 // indirect
	github.com/pkg/errors v0.9.1 // indirect
	github.com/santhosh-tekuri/jsonschema/v5 v5.3.1 // indirect
	github.com/swaggest/jsonschema-go v0.3.79 // indirect
	github.com/swaggest/refl v1.4.0 // indirect
	golang.org/x/sys v0.47.0 // indirect
)
