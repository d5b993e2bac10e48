// Reads cloud-configs as Kairos does: kairos CLOUD-CONFIG.yaml...
//
// Its schema, its own types of a stage, and what its agent wants before it resets or upgrades: an administrator, or to
// be told that none is wanted. Says what is wrong and exits with 1.
package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/kairos-io/kairos-sdk/schema"
	yip "github.com/mudler/yip/pkg/schema"
	"github.com/twpayne/go-vfs/v5"
	"gopkg.in/yaml.v3"
)

type document struct {
	Install struct {
		NoUsers bool `yaml:"nousers"`
	} `yaml:"install"`
	Stages yaml.Node `yaml:"stages"`
}

// The schema wants users, whatever `install.nousers` says.
const noUsers = "missing properties: 'users'"

func check(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var all document
	if err := yaml.Unmarshal(text, &all); err != nil {
		return err
	}
	err = schema.Validate(path)
	if err != nil && !(all.Install.NoUsers && strings.HasSuffix(strings.TrimSpace(err.Error()), noUsers)) {
		return fmt.Errorf("schema: %w", err)
	}
	stages, err := yaml.Marshal(&all.Stages)
	if err != nil {
		return err
	}
	decoder := yaml.NewDecoder(bytes.NewReader(stages))
	decoder.KnownFields(true)
	if err := decoder.Decode(&map[string][]yip.Stage{}); err != nil {
		return fmt.Errorf("stages: %w", err)
	}
	config, err := yip.Load(string(text), vfs.OSFS, nil, nil)
	if err != nil {
		return fmt.Errorf("yip: %w", err)
	}
	for _, steps := range config.Stages {
		for _, step := range steps {
			for _, user := range step.Users {
				if slices.Contains(user.Groups, "admin") {
					return nil
				}
			}
		}
	}
	if !all.Install.NoUsers {
		return fmt.Errorf("nobody is in the group admin: the agent refuses it")
	}
	return nil
}

func main() {
	code := 0
	for _, path := range os.Args[1:] {
		if err := check(path); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			code = 1
		}
	}
	os.Exit(code)
}
